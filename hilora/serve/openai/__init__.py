"""The HTTP layer that clients of OpenAI's API talk to: their requests in, their forms out.

app.include_router(routes(desk, limits, who))
install_errors(app)
app.add_middleware(Guard, limits=limits)
"""

from hilora.serve.openai.errors import install_errors
from hilora.serve.openai.guard import Guard
from hilora.serve.openai.routes import routes

__all__ = ["Guard", "install_errors", "routes"]
