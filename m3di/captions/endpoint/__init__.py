"""Captions by a vision-language model behind a server that speaks chat completions, over HTTP or in batch files."""
