"""To come."""


def tables(*a):
    return ""


def table(*a):
    return ""


def draw(*a):
    return ""
