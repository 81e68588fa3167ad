"""Streams one chat with stubs made from the protos; run as a script, without our packages.

Usage: python -S plain_grpc_chat.py HOST:PORT MAX_TOKENS CONTENT. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys

import grpc

from millrace.v1 import inference_pb2, inference_pb2_grpc, types_pb2


def main() -> None:
    """Prints the texts, and where every module in our namespace was loaded from."""
    address, max_tokens, content = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    sampling = types_pb2.SamplingParams(max_tokens=max_tokens, temperature=0.0)
    request = inference_pb2.ChatRequest(
        messages=[types_pb2.Message(role="user", content=content)],
        options=inference_pb2.RequestOptions(sampling=sampling),
    )
    texts, events = [], []
    with grpc.insecure_channel(address) as channel:
        for response in inference_pb2_grpc.InferenceServiceStub(channel).Chat(request, timeout=60):
            events.append(response.WhichOneof("event"))
            if events[-1] == "delta":
                texts.append(response.delta.text)
    files = [
        module.__file__
        for name, module in sys.modules.items()
        if name.startswith("millrace") and getattr(module, "__file__", None)
    ]
    print(json.dumps({"texts": texts, "events": events, "files": files}))


if __name__ == "__main__":
    main()
