"""Says whether a model folder can be served: python -m millrace.engine.check_folder FOLDER

A process of its own, because torch and transformers are imported for some models, and because
whatever they print stays there. The answer is one JSON object: `route`, and `refusal`, the reason
if the route is "refused".
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from millrace.core.errors import UnsupportedModel

from .models.checkpoint_check import check_checkpoint


def main() -> int:
    """Answers on stdout, which libraries have no share in. Exit status 0 for a refusal too."""
    parser = argparse.ArgumentParser(prog="python -m millrace.engine.check_folder")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        answer = {"route": check_checkpoint(folder), "refusal": ""}
    except UnsupportedModel as error:
        answer = {"route": "refused", "refusal": error.message}
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed: pip install 'millrace[engine]'", file=sys.stderr)
        return 1
    with answers:
        json.dump(answer, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
