"""What a person reads in the end: tables, figures and the gallery, made from the records of finished experiments."""
