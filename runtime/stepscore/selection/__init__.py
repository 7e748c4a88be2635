"""Selection of one sample per problem: best-of-N, voting, expected accuracy."""
