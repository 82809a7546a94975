"""The commands of pli. They start services as child processes and import no zone but pli."""
