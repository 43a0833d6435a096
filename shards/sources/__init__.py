"""Reading captioned data sets in the forms that others use: each becomes a list of records."""
