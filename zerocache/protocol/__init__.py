"""Wire formats: watermarks, cookies and the messages of ports 4848 and 4849."""
