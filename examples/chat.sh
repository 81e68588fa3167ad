#!/bin/sh
# Chat with curl: a whole answer, then a streamed one.
set -eu
url="${MILLRACE_URL:-http://127.0.0.1:8080}"

curl -sS --fail-with-body "$url/v1/chat/completions" -H 'content-type: application/json' -d '{
  "messages": [{"role": "user", "content": "What is the capital of France?"}],
  "max_tokens": 20,
  "temperature": 0
}'
echo

# -N shows each event as it comes.
curl -sSN --fail-with-body "$url/v1/chat/completions" -H 'content-type: application/json' -d '{
  "messages": [{"role": "user", "content": "What is the capital of France?"}],
  "max_tokens": 20,
  "temperature": 0,
  "stream": true
}'
