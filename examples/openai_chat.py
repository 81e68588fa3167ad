"""Stream a chat with the official OpenAI client: `pip install openai`."""

import os

from openai import OpenAI

url = os.environ.get("MILLRACE_URL", "http://127.0.0.1:8080")
client = OpenAI(base_url=f"{url}/v1", api_key="none")
stream = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": "What is the capital of France?"}],
    max_tokens=20,
    temperature=0,
    stream=True,
    # What OpenAI's API does not have goes beside its fields.
    extra_body={"repetition_penalty": 1.0},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
