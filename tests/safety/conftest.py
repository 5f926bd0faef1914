"""Where the tests of safety find what the tests of each part are made of."""
