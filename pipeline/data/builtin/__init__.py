"""Built-in data sets: word problems, posts and dialogues, generated from templates."""
