"""The commands `vigor score`, `status`, `wait`, `push` and `scale`.

It knows the client's public methods, files of JSON lines and the terminal; nothing imports it but the trainer, for its
input files.
"""
