"""Training a supernet: recipes, sampling strategies, the loop and its checkpoints."""

from growtas.train.observer import Observer
from growtas.train.recipe import Recipe
from growtas.train.recipes import default_recipe, digits_demo, fashion_mnist_micro, paper
from growtas.train.resolve_recipe import resolve_recipe
from growtas.train.session import Session, resume_session, start_session
from growtas.train.strategies import Strategy, make_strategy
from growtas.train.trainer import Trainer

__all__ = [
    "Observer",
    "Recipe",
    "Session",
    "Strategy",
    "Trainer",
    "default_recipe",
    "digits_demo",
    "fashion_mnist_micro",
    "make_strategy",
    "paper",
    "resolve_recipe",
    "resume_session",
    "start_session",
]
