"""A worker whose payload is the function that it runs."""


def main(function, fds):
    function(fds)
