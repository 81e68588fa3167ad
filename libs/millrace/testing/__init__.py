"""Stand-ins and checks that tests of several packages share; nothing here runs in a service."""
