"""Chats as prompts: a model's chat templates, rendered within a budget of steps and text.

Needs jinja2, which a wheel that uses it requires itself.
"""

from sage_infer.sdk.chat_templates.chats import TOOL_USE, ChatTemplates
from sage_infer.sdk.chat_templates.template import ChatTemplate, TemplateTooCostly

__all__ = ["TOOL_USE", "ChatTemplate", "ChatTemplates", "TemplateTooCostly"]
