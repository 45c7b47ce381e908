"""The Step-Trace Buffer: built, checked, stored, searched and grown."""
