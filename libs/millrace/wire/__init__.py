"""Where protobuf messages become core types, and errors become statuses."""
