"""A small gRPC client made from kvasir.proto at run time with grpcio-tools. Importing this needs grpcio and grpcio-tools."""
import os
import pathlib
import sys
import tempfile

import grpc
import pytest
from grpc_tools import protoc

if os.environ.get("KVASIR_TEST_SANITIZER") == "thread":
    pytest.skip("the system's gRPC is not built with ThreadSanitizer (tests/tsan.supp)", allow_module_level=True)

ROOT = pathlib.Path(__file__).resolve().parents[2]
_generated = tempfile.mkdtemp(prefix="kvasir-proto-")
if protoc.main(["", f"-I{ROOT / 'proto'}", f"--python_out={_generated}", f"--grpc_python_out={_generated}", str(ROOT / "proto/kvasir.proto")]) != 0:
    raise ImportError("protoc failed on kvasir.proto")
sys.path.insert(0, _generated)
from kvasir_server import SLOW  # noqa: E402
import kvasir_pb2 as pb  # noqa: E402
import kvasir_pb2_grpc as pb_grpc  # noqa: E402


class Client:
    def __init__(self, port, key=None):
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.stub = pb_grpc.InferenceStub(self.channel)
        self.metadata = [("authorization", f"Bearer {key}")] if key else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def generate(self, request, timeout=120 * SLOW):
        return self.stub.Generate(request, timeout=timeout, metadata=self.metadata)

    def generate_ids(self, ids, max_tokens, **sampling):
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), max_tokens=max_tokens, ignore_eos=True,
                                     sampling=pb.SamplingParams(**{"temperature": 0, **sampling}))
        out = []
        for event in self.generate(request):
            out.extend(event.delta.token_ids)
        return out


def connect(port, key=None):
    return Client(port, key)
