"""What every pli service shares on the wire: roles, the interceptor, servers and channels."""
