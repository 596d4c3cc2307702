"""`python -m onnxq`, as the command `onnxq`."""

from onnxq.cli import main

main()
