"""Client view records: what each client group has been told."""
