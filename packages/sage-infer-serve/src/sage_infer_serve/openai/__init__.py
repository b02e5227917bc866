"""The endpoints: each module reads one kind of request, calls the backend, and writes OpenAI's response."""
