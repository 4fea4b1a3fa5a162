// A form that publishes. A key in a page is for development: in production your own server publishes.

import { useState, type FormEvent } from "react";

interface Answer {
  id?: string;
  subscribers?: number;
  error?: { code: string; message: string };
}

interface Result {
  good: boolean;
  text: string;
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

async function publish(url: string, fields: FormData): Promise<Result> {
  const field = (name: string): string => String(fields.get(name) ?? "").trim();
  const type = field("type");
  try {
    const response = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${field("key")}` },
      body: JSON.stringify({ topic: field("topic"), data: parsed(field("data")), ...(type && { event: type }) }),
    });
    const answer = (await response.json()) as Answer;
    if (answer.error) return { good: false, text: `${response.status} ${answer.error.code}: ${answer.error.message}` };
    const { id, subscribers = 0 } = answer;
    return { good: true, text: `Published to ${subscribers} stream${subscribers === 1 ? "" : "s"}, id ${id}.` };
  } catch {
    return { good: false, text: "No answer that this page can read. Is the server running, and does its CORS allow this page?" };
  }
}

export function Publish({ url }: { url: string }) {
  const [result, setResult] = useState<Result | null>(null);

  const submit = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    setResult(await publish(url, new FormData(event.currentTarget)));
  };

  return (
    <section id="publish" className="publish" aria-labelledby="publish-title">
      <h2 id="publish-title">Publish</h2>
      <form onSubmit={(event) => void submit(event)}>
        <label>
          To topic <input name="topic" defaultValue="orders" required autoCapitalize="off" spellCheck={false} />
        </label>
        <label>
          Event type <input name="type" defaultValue="created" autoCapitalize="off" spellCheck={false} />
        </label>
        <label className="data">
          Data <input name="data" defaultValue='{"order": 7}' autoCapitalize="off" spellCheck={false} />
        </label>
        <label>
          Publish key <input name="key" type="password" defaultValue="dev" autoComplete="off" />
        </label>
        <button>Publish</button>
      </form>
      <output className={result?.good ? "good" : "bad"}>{result?.text}</output>
    </section>
  );
}
