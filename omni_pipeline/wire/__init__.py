"""What processes say to each other, and the sockets that carry it. Not: who acts on a message."""
