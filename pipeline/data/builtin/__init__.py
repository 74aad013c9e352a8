"""The built-in sets: word problems, posts and dialogues, made from templates."""
