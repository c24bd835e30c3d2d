"""The commands, one file each: parse, call the engine, print. Importing one loads nothing heavy."""
