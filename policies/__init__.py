"""The written policies that ship with guardmill, as package data."""
