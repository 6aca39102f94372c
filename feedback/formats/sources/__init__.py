"""Reading rows out of files and folders: text, tables, and folders as the Hub and `datasets` have them."""
