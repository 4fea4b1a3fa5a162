// Publishes from Go 1.18 or newer, with nothing but its standard library:
//
//	go run docs/examples/publishers/publish.go
//
// Copy publish into your program. The key that it makes is the same in each try, so the event is published once.
package main

import (
	"bytes"
	"context"
	cryptorand "crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net/http"
	"os"
	"strconv"
	"time"
)

// Event is what is published. An IdempotencyKey is made when there is none.
type Event struct {
	Topic          string `json:"topic"`
	Data           any    `json:"data"`
	Event          string `json:"event,omitempty"`
	IdempotencyKey string `json:"idempotency_key"`
}

var errRefused = errors.New("refused")

func environment(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// once tries once. It returns the event's id, or how long the server asks to wait.
func once(ctx context.Context, body []byte) (id string, wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	url := environment("EVENTS_URL", "http://localhost:8000") + "/events"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return "", 0, err
	}
	request.Header.Set("Authorization", "Bearer "+environment("EVENTS_KEY", "dev"))
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", 0, err // no answer
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return "", 0, err
	}
	if answer.StatusCode == http.StatusOK {
		var receipt struct{ ID string }
		err = json.Unmarshal(text, &receipt)
		return receipt.ID, 0, err
	}
	err = fmt.Errorf("%d %s", answer.StatusCode, text)
	if answer.StatusCode < 500 && answer.StatusCode != http.StatusTooManyRequests {
		return "", 0, fmt.Errorf("%w: %v", errRefused, err) // the same request gets the same answer
	}
	seconds, _ := strconv.Atoi(answer.Header.Get("Retry-After"))
	return "", time.Duration(seconds) * time.Second, err
}

// publish returns the event's id when it is in the log. It tries until the context is done.
func publish(ctx context.Context, event Event) (string, error) {
	if event.IdempotencyKey == "" {
		random := make([]byte, 16)
		if _, err := cryptorand.Read(random); err != nil {
			return "", err
		}
		event.IdempotencyKey = hex.EncodeToString(random)
	}
	body, err := json.Marshal(event)
	if err != nil {
		return "", err
	}
	for wait := 250 * time.Millisecond; ; wait *= 2 {
		id, told, err := once(ctx, body)
		if err == nil || errors.Is(err, errRefused) {
			return id, err
		}
		if wait > 10*time.Second {
			wait = 10 * time.Second
		}
		if told < wait {
			told = wait
		}
		// At random, so that many publishers do not come back at once.
		pause := told + time.Duration(rand.Int63n(int64(told)/4))
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("not published: %w", err)
		case <-time.After(pause):
		}
	}
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	id, err := publish(ctx, Event{Topic: "orders", Data: map[string]int{"order": 7}, Event: "created"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(id)
}
