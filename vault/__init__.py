"""The office's side: identities, keys, landing log, settlement, scoring, exports, audit."""
