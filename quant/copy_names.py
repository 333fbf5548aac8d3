"""What the files of a quantized copy are called, and the version of their layout; without torch."""

COPY_VERSION = 2  # part of every key: raise it when files or layouts change
DATA_FILE = "weights.bin"
INDEX_FILE = "index.json"
