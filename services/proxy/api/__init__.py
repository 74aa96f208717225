"""The part of Envoy's API that is used here: `envoy.proto`, and what `make protos` writes out of it."""
