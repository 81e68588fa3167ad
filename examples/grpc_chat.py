"""Stream a chat over gRPC, with the stubs that come with millrace.

For any other language make stubs from protos/millrace/v1; the server has reflection too.
"""

import os

import grpc

from millrace.v1 import inference_pb2, inference_pb2_grpc, types_pb2

address = os.environ.get("MILLRACE_GRPC", "127.0.0.1:50051")
question = types_pb2.Message(role="user", content="What is the capital of France?")
sampling = types_pb2.SamplingParams(max_tokens=20, temperature=0)
request = inference_pb2.ChatRequest(
    messages=[question], options=inference_pb2.RequestOptions(sampling=sampling)
)
with grpc.insecure_channel(address) as channel:
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    for event in stub.Chat(request, timeout=60):
        print(event.delta.text, end="", flush=True)
print()
