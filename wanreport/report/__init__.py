"""DataFrames to pages: tables, pictures, notebooks. The one room that knows HTML and matplotlib."""
