"""One file per verb: parse, call the engine, print. Importing one loads nothing heavy."""
