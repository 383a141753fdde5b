"""The HTTP layer that clients of OpenAI's API talk to: their requests in, their forms out.

app.include_router(routes(desk, limits, who))
install_errors(app)
app.add_middleware(Edge, limits=limits)
"""

from hilora.serve.openai.edge import Edge
from hilora.serve.openai.errors import install_errors
from hilora.serve.openai.routes import routes

__all__ = ["Edge", "install_errors", "routes"]
