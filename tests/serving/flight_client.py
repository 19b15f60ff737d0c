"""A Flight client as a process of its own: says what it got as JSON lines.

python -m tests.serving.flight_client URL '{"source": ..., "batch_size": ...}' [TOKEN]
"""

import json
import sys

import pyarrow.flight as fl


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main() -> None:
    url, command, *token = sys.argv[1:]
    headers = [(b"authorization", f"Bearer {token[0]}".encode())] if token else []
    options = fl.FlightCallOptions(headers=headers, timeout=60)
    with fl.connect(url) as client:
        try:
            info = client.get_flight_info(fl.FlightDescriptor.for_command(command.encode()), options)
            say(json.dumps({"rows": info.total_records, "columns": info.schema.names}))
            for number, endpoint in enumerate(info.endpoints):
                for chunk in client.do_get(endpoint.ticket, options):
                    index = int.from_bytes(chunk.app_metadata.to_pybytes(), "little")
                    words = chunk.data.column("word").to_pylist()
                    say(
                        json.dumps(
                            {
                                "endpoint": number,
                                "batch": index,
                                "ids": chunk.data.column("id").to_pylist(),
                                "words": words,
                            }
                        )
                    )
        except fl.FlightError as error:
            say(json.dumps({"failed": type(error).__name__, "document": json.loads(error.extra_info or b"null")}))


if __name__ == "__main__":
    main()
