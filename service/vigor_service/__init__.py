"""The VIGOR scoring service: exact gradient norms of the current policy over HTTP."""
