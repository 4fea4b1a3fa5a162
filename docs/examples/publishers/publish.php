<?php
// Publishes from PHP 8.1 or newer, with nothing but what is in it (no extension, allow_url_fopen is on by default):
//
//     php docs/examples/publishers/publish.php
//
// Copy `publish` into your program. The key that it makes is the same in each try, so the event is published once.
declare(strict_types=1);

/** Returns the answer, ['id' => ..., 'subscribers' => ...], when the event is in the log. Throws when it is refused or too late. */
function publish(
    string|array $topic,
    mixed $data,
    ?string $event = null,
    ?string $idempotencyKey = null,
    float $deadlineSeconds = 30.0,
): array {
    $deadline = microtime(true) + $deadlineSeconds;
    $body = ['topic' => $topic, 'data' => $data, 'event' => $event];
    $body['idempotency_key'] = $idempotencyKey ?? bin2hex(random_bytes(16));
    $key = getenv('EVENTS_KEY') ?: 'dev';
    $request = stream_context_create(['http' => [
        'method' => 'POST',
        'header' => ["Authorization: Bearer $key", 'Content-Type: application/json'],
        'content' => json_encode($body, JSON_THROW_ON_ERROR | JSON_UNESCAPED_UNICODE | JSON_PRESERVE_ZERO_FRACTION),
        'timeout' => 10,
        'ignore_errors' => true, // the body of an error says what is wrong
    ]]);
    for ($wait = 0.25; ; $wait = min(2 * $wait, 10)) {
        $stream = @fopen((getenv('EVENTS_URL') ?: 'http://localhost:8000') . '/events', 'r', false, $request);
        $text = $stream ? stream_get_contents($stream) : false;
        $head = $stream ? stream_get_meta_data($stream)['wrapper_data'] : [];
        $status = (int) (explode(' ', $head[0] ?? '')[1] ?? 0); // 0: no answer
        if ($status === 200 && is_array($answer = json_decode((string) $text, true))) {
            return $answer;
        }
        $told = 0;
        foreach ($head as $line) {
            if (stripos($line, 'Retry-After:') === 0) {
                $told = (int) substr($line, strlen('Retry-After:'));
            }
        }
        // At random, so that many publishers do not come back at once.
        $pause = max($wait, $told) * (1 + mt_rand() / mt_getrandmax() / 4);
        // After most statuses of 4xx the same request gets the same answer.
        $isRefused = $status >= 400 && $status < 500 && $status !== 429;
        if ($isRefused || microtime(true) + $pause > $deadline) {
            throw new RuntimeException('not published: ' . ($status ? "$status $text" : 'no answer'));
        }
        usleep((int) (1_000_000 * $pause));
    }
}

echo publish('orders', ['order' => 7], event: 'created')['id'], "\n";
