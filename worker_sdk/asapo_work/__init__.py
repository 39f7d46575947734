"""Worker SDK: consume streams of messages and publish what is computed from them."""
