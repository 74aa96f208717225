"""The Hubble API: .proto files, and the Python that `make protos` writes out of them."""
