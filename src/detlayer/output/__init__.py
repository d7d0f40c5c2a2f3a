"""Files that appear whole or not at all, temporary files and spooled contents."""
