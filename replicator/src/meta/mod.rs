//! On-disk structures as values: bytes in, bytes out. No files.
