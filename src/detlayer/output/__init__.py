"""Files that are written atomically, temporary files and spooled contents."""
