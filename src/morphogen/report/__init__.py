"""Tables, pictures and the page, from records alone. Called by `runfolder` and the command line."""
