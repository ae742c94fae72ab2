"""The BentoML services, the ``lienzo`` command line and the HTTP schemas."""
