"""The endpoints: each module reads one kind of request, asks the backend, and writes OpenAI's answer."""
