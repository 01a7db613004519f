"""Who may do what on the API: roles and bindings, service accounts and their tokens, and who asks."""
