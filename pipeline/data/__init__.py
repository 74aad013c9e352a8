"""External data: reading, checking, rendering to tokens."""
