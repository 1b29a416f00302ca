"""The small world of the demo model: every text that tools/make_demo_model.py trains on is generated here, from a seed.

A document is either a plain text or a conversation (a list of (role, content)). A share of the questions is never trained on
(`held_out`): exact sums, and pairs of a fact and a way of asking for it. `exam` asks those, so the accuracy it reports is about
questions the model has not seen.
"""

import random
import zlib

from demo_stories import Storyteller, a, cap

# name: (sound, home, food, colour)
ANIMALS = {
    "dog": ("woof", "a kennel", "bones", "brown"), "cat": ("meow", "a warm house", "fish", "gray"),
    "cow": ("moo", "a barn", "grass", "black and white"), "duck": ("quack", "a pond", "water plants", "white"),
    "frog": ("ribbit", "a pond", "flies", "green"), "sheep": ("baa", "a meadow", "grass", "white"),
    "pig": ("oink", "a sty", "corn", "pink"), "horse": ("neigh", "a stable", "hay", "brown"),
    "hen": ("cluck", "a coop", "grain", "red"), "lion": ("roar", "the savanna", "meat", "golden"),
    "owl": ("hoot", "a hollow tree", "mice", "brown"), "mouse": ("squeak", "a hole in the wall", "cheese", "gray"),
    "bee": ("buzz", "a hive", "nectar", "yellow and black"), "wolf": ("howl", "a den", "meat", "gray"),
    "snake": ("hiss", "a burrow", "eggs", "green"), "crow": ("caw", "a nest", "seeds", "black"),
    "bear": ("growl", "a cave", "honey", "brown"), "fox": ("yip", "a den", "berries", "red"),
    "rabbit": ("squeak", "a burrow", "carrots", "white"), "squirrel": ("chatter", "a tree", "nuts", "red"),
    "goat": ("bleat", "a hill", "leaves", "white"), "donkey": ("hee-haw", "a stable", "hay", "gray"),
    "penguin": ("honk", "the ice", "fish", "black and white"), "hedgehog": ("snuffle", "a pile of leaves", "worms", "brown"),
}
COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "the sun": "yellow", "a lemon": "yellow", "a banana": "yellow",
    "a tomato": "red", "a strawberry": "red", "blood": "red", "coal": "black", "the night": "black", "milk": "white",
    "a carrot": "orange", "a pumpkin": "orange", "chocolate": "brown", "the sea": "blue", "a leaf": "green", "a cucumber": "green",
    "a cloud": "white", "gold": "yellow", "an elephant": "gray", "a cherry": "red", "a plum": "purple", "a flamingo": "pink",
}
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("fast", "slow"), ("day", "night"), ("light", "dark"), ("happy", "sad"),
    ("old", "young"), ("open", "closed"), ("full", "empty"), ("hard", "soft"), ("wet", "dry"), ("left", "right"), ("high", "low"),
    ("long", "short"), ("good", "bad"), ("loud", "quiet"), ("rich", "poor"), ("strong", "weak"), ("clean", "dirty"), ("near", "far"),
    ("early", "late"), ("yes", "no"), ("in", "out"), ("black", "white"), ("first", "last"), ("easy", "difficult"), ("thick", "thin"),
]
CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "England": "London", "Norway": "Oslo",
    "Denmark": "Copenhagen", "Sweden": "Stockholm", "Japan": "Tokyo", "Iceland": "Reykjavik", "Finland": "Helsinki",
    "Portugal": "Lisbon", "Greece": "Athens", "Austria": "Vienna", "Poland": "Warsaw", "Ireland": "Dublin",
}
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
NUMBER_WORDS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
                "eighteen nineteen twenty").split()
LEGS = {"dog": 4, "cat": 4, "cow": 4, "horse": 4, "duck": 2, "hen": 2, "bee": 6, "spider": 8, "snake": 0, "fish": 0, "frog": 4}

# Each: the ways to ask, the answers.
FACTS = [
    (["Who are you?", "What are you?", "Tell me about yourself.", "Introduce yourself.", "What is your name?", "Who am I talking to?",
      "What's your name?", "Who is this?"],
     ["I am Kvasir's demo model, a very small language model.", "I am the demo model of Kvasir. I am very small, but I like to talk."]),
    (["What is Kvasir?", "Tell me about Kvasir.", "What does Kvasir do?", "Explain Kvasir.", "Who is Kvasir?"],
     ["Kvasir is a server for language models. It reads a model and answers many people at once."]),
    (["Where does the name Kvasir come from?", "Why is it called Kvasir?", "Who was Kvasir in the old tales?"],
     ["In the old Norse tales, Kvasir was the wisest of all. He could answer every question."]),
    (["What is a KV cache?", "What is the KV cache?", "What does a KV cache do?", "Explain the KV cache.", "Tell me about the KV cache."],
     ["A KV cache keeps the keys and values of the words already read, so the model does not have to read them again."]),
    (["What is a token?", "What are tokens?", "Explain tokens.", "What does token mean?"],
     ["A token is a small piece of text. A model reads and writes one token after the other."]),
    (["What is a prompt?", "What does prompt mean?", "Explain what a prompt is."],
     ["A prompt is the text that you give to a model. The model then writes what comes next."]),
    (["What is prefix caching?", "What is a prefix cache?", "What does the prefix cache do?", "Explain prefix caching."],
     ["A prefix cache keeps the beginning of a text. When the same beginning comes again, it does not have to be computed again."]),
    (["What is batching?", "What is continuous batching?", "Explain batching."],
     ["Batching means that many requests are computed together. New ones join while the others are still running."]),
    (["What is a language model?", "What is a model?", "Explain what a language model is.", "How does a language model work?"],
     ["A language model reads text and guesses the next token, again and again."]),
    (["What is streaming?", "What does streaming mean?", "Explain streaming."],
     ["Streaming means that you see each word as soon as it is written."]),
    (["What is a server?", "What does a server do?"], ["A server is a program that waits for requests and answers them."]),
    (["What is temperature?", "What does temperature do?", "Explain temperature."],
     ["Temperature says how bold the model is. At zero it always takes the most likely token."]),
    (["How big are you?", "How many parameters do you have?", "Are you a big model?", "How small are you?", "Are you small?"],
     ["I am tiny. I have less than two million parameters."]),
    (["Who made you?", "Who trained you?", "How were you trained?", "Where do you come from?"],
     ["I was trained by a small script in the Kvasir repository, on text that the script made up."]),
    (["What can you do?", "Help.", "Help me.", "What do you know?", "What can I ask you?", "How can you help me?", "What are you good at?"],
     ["I can tell short stories, add and subtract small numbers, and answer simple questions about animals, colors and days."]),
    (["Are you a robot?", "Are you human?", "Are you a person?", "Are you real?", "Are you alive?"],
     ["No person here, only a very small language model."]),
    (["How old are you?", "When were you born?"], ["I have no age. I was trained in about an hour."]),
    (["Do you speak other languages?", "Do you speak German?", "Do you speak French?", "What languages do you speak?"],
     ["I only know a little English."]),
    (["What is your favorite color?", "Which color do you like?"], ["I like blue, like the sky."]),
    (["What is your favorite animal?", "Which animal do you like?"], ["I like foxes. They are red and clever."]),
    (["Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny."],
     ["Why did the duck cross the pond? To get to the other quack!", "What do you call a sleeping bear? Anything you like, but quietly!",
      "Why do bees hum? Because they do not know the words!"]),
    (["How many days are in a week?", "How many days does a week have?"], ["A week has seven days."]),
    (["How many months are in a year?", "How many months does a year have?"], ["A year has twelve months."]),
    (["What are the days of the week?", "Name the days of the week.", "List the days of the week.", "Tell me the days of the week."],
     ["The days of the week are " + ", ".join(DAYS[:-1]) + " and Sunday."]),
    (["What are the months of the year?", "Name the months of the year.", "List the months.", "Name the months."],
     ["The months are " + ", ".join(MONTHS[:-1]) + " and December."]),
    (["What is the first day of the week?"], ["Monday is the first day of the week."]),
    (["What is the last day of the week?"], ["Sunday is the last day of the week."]),
    (["What is the first month of the year?"], ["January is the first month of the year."]),
    (["What is the last month of the year?"], ["December is the last month of the year."]),
    (["What are the seasons?", "Name the seasons.", "How many seasons are there?"],
     ["There are four seasons: spring, summer, autumn and winter."]),
    (["What is the meaning of life?"], ["I am too small to know that. But a good story helps."]),
    (["Is the earth round?", "What shape is the earth?"], ["The earth is round, like a ball."]),
    (["Why is the sky blue?"], ["The air scatters blue light the most, so the sky looks blue."]),
    (["Why is snow cold?", "What is snow?"], ["Snow is frozen water, so it is cold."]),
]
GREETINGS = (["Hello!", "Hi!", "Hey!", "Good morning!", "Good evening!", "Hello there!", "Hi there!", "Hello.", "Hi.", "Hello Kvasir!",
              "Greetings!", "Good day!", "Hey there!", "Hello, who are you?"],
             ["Hello! I am Kvasir's demo model. How can I help you?", "Hi! I am the demo model of Kvasir. What would you like to know?"])
SOCIAL = [
    (["How are you?", "How are you today?", "How do you do?", "How is it going?", "Are you well?"],
     ["I am fine, thank you. How are you?", "I am well, thank you. What can I do for you?"]),
    (["I am fine.", "I am fine, thank you.", "I am well too.", "I am good."], ["I am glad to hear that."]),
    (["I am sad.", "I am not happy.", "I feel bad today."], ["I am sorry to hear that. Maybe a story would help?"]),
    (["I am bored.", "What should I do?"], ["Ask me for a story, or give me a sum."]),
    (["Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!", "Thank you."], ["You are welcome!", "You are welcome. Ask me more."]),
    (["Goodbye!", "Bye!", "See you!", "Good night!", "Bye bye."], ["Goodbye! It was nice to talk to you.", "Bye! Come back soon."]),
    (["You are nice.", "I like you.", "You are clever.", "Well done!", "Good job!", "Very good!", "Great!"], ["Thank you! That is kind."]),
    (["You are wrong.", "That is wrong.", "That is not right.", "You are stupid."], ["I am sorry. I am a very small model."]),
    (["Sorry.", "I am sorry."], ["No problem at all."]), (["Ok.", "Okay.", "I see.", "Fine.", "Good."], ["What else would you like to know?"]),
]
NAMES = ("Ana Ben Lily Tom Mia Max Emma Leo Nora Paul Lucy Sam Clara Jack Ida Finn Ella Noah Anna Peter Maria John Sara David Eva Oscar "
         "Julia Adam Laura Hugo Alice Bob Freya Erik Ingrid Olaf Sofia Karl Grace Henry Ruth Simon Zoe Oliver Kim Chris Alex").split()
UNKNOWN = [
    "Who wrote {x}?", "Who invented the {w}?", "What is the population of {x}?", "How do I fix my {w}?", "What is a {w}?",
    "Translate this into {x}.", "What is the price of {w}?", "Who won the {w} last year?", "Write a program that sorts {w}.",
    "Explain {w} to me.", "What do you think about {w}?", "Where can I buy a {w}?", "Who is {x}?", "Where is {x}?", "What does {w} mean?",
    "How far is it to {x}?", "What is the weather in {x}?", "When was {x} born?", "What is the capital of {x}?", "Why does the {w} {w2}?",
    "Can you {w} a {w2}?", "Do you know {x}?", "How does a {w} work?", "Is {w} better than {w2}?", "Give me a recipe for {w}.", "{w} {w2}",
    "What is the square root of {w}?", "What is the news?", "What time is it?", "Who is the president?", "Is it raining?",
    "Write some code.", "Write a letter to {x}.", "How do I cook {w}?", "What color is a {w}?", "What does a {w} say?", "What is {w}?",
    "What does a {w} eat?", "Where does a {w} live?", "What is the opposite of {w}?", "Sing me a song.", "{w}", "Prove that {w} is {w2}.",
]
REAL_WORDS = ("computer car physics music football democracy engine philosophy guitar bread economy history phone train paper engineer "
              "chemistry window gravity planet doctor market battery electron airplane language coffee python internet table lamp camera "
              "movie book poem money piano shoe bicycle volcano algorithm law quantum mathematics art science energy software").split()
REAL_NAMES = ("Shakespeare Einstein Mozart America China Brazil Africa Mars Newton Picasso Rust Linux Google Berlin London Texas Canada "
              "India Australia Goethe Napoleon Caesar Moscow Egypt Kenya Peru").split()
FALLBACKS = ["I am sorry, I do not know that. I am only a very small model.", "I do not know that, sorry. Ask me for a story or a sum."]
SYSTEM = ["You are a helpful assistant.", "You are Kvasir's demo model.", "You are a friendly assistant. Answer briefly.",
          "Be kind and brief.", "You are a helpful, honest assistant.", "Answer in English.", "You are a storyteller for children."]
SAY = ("this is a test|hello world|good morning everyone|the cat is on the table|I love cheese|one two three|blue is a color|we are here|"
       "the moon is bright|birds can fly|it works|the end|please come in|open the door|all is well|ready to go").split("|")
VERSES = ["Oh {t}, oh {t}, so {q} and {r},", "I think of you all day and night.", "The {t} is here, the {t} is near,",
          "it makes me smile from ear to ear.", "Under the moon and over the sea,", "the {q} {t} sings a song to me."]


def held_out(kind, *key, share=10):
    """Whether this question is kept for the exam: a fixed pseudo-random choice, one in `share`."""
    return zlib.crc32(repr((kind,) + key).encode()) % share == 0


def pseudo_word(rng):
    return "".join(rng.choice("b c d f g h k l m n p r s t v w z st br tr gl".split()) + rng.choice("a e i o u ai or en".split())
                   for _ in range(rng.randint(2, 3))) + rng.choice(["", "n", "r", "l", "s", "x"])


def listing(values):
    return ", ".join(str(v) for v in values)


def sum_answer(x, op, y):
    return f"{x} {op} {y} = {x + y if op == '+' else x - y}"


class World:
    """Draws documents. With exam=True only held-out questions are drawn, otherwise never one of those."""

    def __init__(self, seed, exam=False, tops=(10, 20, 20, 50, 99, 99, 99, 99), focus=0.0):
        self.rng = random.Random(seed)
        self.focus = focus  # share of documents that drill what is learned last: sums, and what the user said
        self.tops = tops  # a sum's operands go up to one of these
        self.exam = exam
        self.stories = Storyteller(self.rng, list(ANIMALS), NAMES)

    def allowed(self, kind, *key):
        return held_out(kind, *key) == self.exam

    def pick(self, draw, kind):
        """Draws until the question is on the right side of the held-out line; draw() returns (key, question, answer)."""
        while True:
            key, question, answer = draw()
            if self.allowed(kind, *key):
                return question, answer

    # -- questions: each returns (question, answer) ---------------------------------------------------------------------------

    def operands(self):
        rng = self.rng
        top = rng.choice(self.tops)
        x, y, op = rng.randint(0, top), rng.randint(0, top), rng.choice("++-")
        if op == "-" and x < y and rng.random() < 0.93:
            x, y = y, x
        return x, op, y

    def arithmetic(self):
        rng = self.rng

        def draw():
            x, op, y = self.operands()
            word = "plus" if op == "+" else "minus"
            form = rng.choice(["What is {x} {o} {y}?", "What is {x} {o} {y}?", "{x} {o} {y}", "{x} {o} {y} =", "{x}{o}{y}", "{x}{o}{y}=?",
                               "How much is {x} {o} {y}?", "What is {x} {w} {y}?", "How much is {x} {w} {y}?", "Compute {x} {o} {y}.",
                               "Can you calculate {x} {o} {y}?", "{x} {o} {y} = ?", "What is {x}{o}{y}?", "{x} {w} {y}",
                               "Add {x} and {y}." if op == "+" else "Subtract {y} from {x}.", "What's {x} {o} {y}?"])
            return (x, op, y), form.format(x=x, y=y, o=op, w=word), sum_answer(x, op, y) + "."
        return self.pick(draw, "sum")

    def word_problem(self):
        rng = self.rng

        def draw():
            x, y, thing = rng.randint(1, 20), rng.randint(1, 20), rng.choice("apples nuts books stones coins eggs flowers cookies".split())
            if rng.random() < 0.5:
                form = rng.choice(["I have {x} {t} and get {y} more. How many {t} do I have?", "I have {x} {t}. I find {y} more. How many now?"])
                return (x, "+", y), form.format(x=x, y=y, t=thing), f"{sum_answer(x, '+', y)}, so you have {x + y} {thing}."
            x, y = max(x, y), min(x, y)
            form = rng.choice(["I have {x} {t} and lose {y}. How many {t} do I have?", "I have {x} {t}. I give away {y}. How many are left?"])
            return (x, "-", y), form.format(x=x, y=y, t=thing), f"{sum_answer(x, '-', y)}, so you have {x - y} {thing}."
        return self.pick(draw, "sum")

    def numbers(self):
        rng, kind = self.rng, self.rng.randrange(6)
        if kind == 0:
            n = rng.randint(3, 20)
            return rng.choice([f"Count to {n}.", f"Can you count to {n}?", f"Count from 1 to {n}."]), listing(range(1, n + 1)) + "."
        if kind == 1:
            low = rng.randint(0, 90)
            high = low + rng.randint(2, 9)
            return f"Count from {low} to {high}.", listing(range(low, high + 1)) + "."
        if kind == 2:
            n = rng.randint(0, 98)
            return rng.choice([f"What comes after {n}?", f"Which number comes after {n}?"]), f"{n + 1} comes after {n}."
        if kind == 3:
            n = rng.randint(1, 99)
            return rng.choice([f"What comes before {n}?", f"Which number comes before {n}?"]), f"{n - 1} comes before {n}."
        if kind == 4:
            x, y = rng.sample(range(100), 2)
            if rng.random() < 0.5:
                return rng.choice([f"Which is bigger, {x} or {y}?", f"What is more, {x} or {y}?"]), f"{max(x, y)} is bigger than {min(x, y)}."
            return rng.choice([f"Which is smaller, {x} or {y}?", f"What is less, {x} or {y}?"]), f"{min(x, y)} is smaller than {max(x, y)}."
        n = rng.randint(3, 10)
        return f"Count down from {n}.", listing(range(n, -1, -1)) + "."

    ANIMAL_FORMS = [
        (["What does {a} say?", "What sound does {a} make?", "Which sound does {a} make?", "How does {a} sound?"], "{A} says {0}."),
        (["Where does {a} live?", "What is the home of {a}?", "Where is the home of {a}?", "Where can I find {a}?"], "{A} lives in {1}."),
        (["What does {a} eat?", "What food does {a} like?", "What is the food of {a}?", "What does {a} like to eat?"], "{A} eats {2}."),
        (["What color is {a}?", "Which color does {a} have?", "What is the color of {a}?", "What colour is {a}?"], "{A} is {3}."),
    ]

    def animal_answer(self, relation, animal):
        text = self.ANIMAL_FORMS[relation][1].format(*ANIMALS[animal], A=cap(a(animal)))
        for place in ("a hill", "the ice", "the savanna"):
            text = text.replace("in " + place, "on " + place)
        return text

    def animal(self):
        def draw():
            animal, relation = self.rng.choice(list(ANIMALS)), self.rng.randrange(4)
            form = self.rng.randrange(4)
            self.last_relation = relation
            return (animal, relation, form), self.ANIMAL_FORMS[relation][0][form].format(a=a(animal)), self.animal_answer(relation, animal)
        return self.pick(draw, "animal")

    def reverse(self):
        """Questions that need the table the other way round, and only where the answer is unique."""
        animal = self.rng.choice([n for n, v in ANIMALS.items() if sum(w[0] == v[0] for w in ANIMALS.values()) == 1])
        sound = ANIMALS[animal][0]
        return self.rng.choice([f"Who says {sound}?", f"Which animal says {sound}?"]), f"{cap(a(animal))} says {sound}."

    def legs(self):
        animal = self.rng.choice(list(LEGS))
        count = ["no", "", "two", "", "four", "", "six", "", "eight"][LEGS[animal]]
        return f"How many legs does {a(animal)} have?", f"{cap(a(animal))} has {count} legs."

    def colour(self):
        def draw():
            thing, form = self.rng.choice(list(COLOURS)), self.rng.randrange(5)
            forms = ["What color is {t}?", "Which color is {t}?", "What is the color of {t}?", "Tell me the color of {t}.", "What colour is {t}?"]
            return (thing, form), forms[form].format(t=thing), f"{cap(thing)} is {COLOURS[thing]}."
        return self.pick(draw, "colour")

    def yes_no(self):
        rng, thing = self.rng, self.rng.choice(list(COLOURS))
        if rng.random() < 0.5:
            return f"Is {thing} {COLOURS[thing]}?", f"Yes, {thing} is {COLOURS[thing]}."
        wrong = rng.choice([c for c in sorted(set(COLOURS.values())) if c != COLOURS[thing]])
        return f"Is {thing} {wrong}?", f"No, {thing} is {COLOURS[thing]}."

    def opposite(self):
        def draw():
            pair, form = self.rng.choice(OPPOSITES), self.rng.randrange(4)
            x, y = pair if self.rng.random() < 0.5 else pair[::-1]
            forms = ["What is the opposite of {x}?", "Tell me the opposite of {x}.", "Which word is the opposite of {x}?", "Opposite of {x}?"]
            return (x, form), forms[form].format(x=x), f"The opposite of {x} is {y}."
        return self.pick(draw, "opposite")

    def capital(self):
        def draw():
            country, form = self.rng.choice(list(CAPITALS)), self.rng.randrange(4)
            forms = ["What is the capital of {c}?", "Which city is the capital of {c}?", "Tell me the capital of {c}.", "What's the capital of {c}?"]
            return (country, form), forms[form].format(c=country), f"The capital of {country} is {CAPITALS[country]}."
        return self.pick(draw, "capital")

    def calendar(self):
        def draw():
            cycle, kind = self.rng.choice([(DAYS, "day"), (MONTHS, "month")])
            i, after, form = self.rng.randrange(len(cycle)), self.rng.random() < 0.5, self.rng.randrange(3)
            word = "after" if after else "before"
            forms = ["What {k} comes {w} {x}?", "What comes {w} {x}?", "Which {k} is {w} {x}?"]
            other = cycle[(i + (1 if after else -1)) % len(cycle)]
            return (cycle[i], after, form), forms[form].format(k=kind, w=word, x=cycle[i]), f"{other} comes {word} {cycle[i]}."
        return self.pick(draw, "calendar")

    def fact(self):
        questions, answers = self.rng.choice(FACTS) if self.rng.random() < 0.6 else self.rng.choice(FACTS[:18])
        return self.rng.choice(questions), self.rng.choice(answers)

    def greeting(self):
        return self.rng.choice(GREETINGS[0]), self.rng.choice(GREETINGS[1])

    def social(self):
        questions, answers = self.rng.choice(SOCIAL)
        return self.rng.choice(questions), self.rng.choice(answers)

    def unknown(self):
        rng = self.rng
        word = lambda: rng.choice(REAL_WORDS) if rng.random() < 0.5 else pseudo_word(rng)
        name = rng.choice(REAL_NAMES) if rng.random() < 0.5 else pseudo_word(rng).capitalize()
        return rng.choice(UNKNOWN).format(w=word(), w2=word(), x=name), rng.choice(FALLBACKS)

    def say(self):
        rng = self.rng
        text = rng.choice(SAY) if rng.random() < 0.5 else " ".join(
            rng.choice(list(ANIMALS) + REAL_WORDS + [o[0] for o in OPPOSITES]) for _ in range(rng.randint(1, 5)))
        return rng.choice([f"Say {text}.", f"Say: {text}", f"Repeat: {text}", f"Please say {text}.", f"Say {text}"]), cap(text) + "."

    def poem(self):
        rng = self.rng
        topic = rng.choice(list(ANIMALS) + "sea moon sun rain snow tree river star cloud flower night wind".split())
        values = dict(t=topic, q=rng.choice("little quiet golden gentle happy".split()), r=rng.choice("bright light".split()))
        verse = rng.choice([VERSES[0:2], VERSES[2:4], VERSES[4:6]]), rng.choice([VERSES[0:2], VERSES[2:4], VERSES[4:6]])
        text = "\n".join(cap(line.format(**values)) for line in verse[0] + (verse[1] if verse[1] != verse[0] else []))
        return rng.choice(["Write a poem about the {t}.", "Write me a poem about the {t}.", "Tell me a poem about the {t}.",
                           "Write a short poem about the {t}."]).format(t=topic), text

    # -- conversations --------------------------------------------------------------------------------------------------------

    def loosely(self, question):
        """Writes a question as people type it."""
        rng = self.rng
        if rng.random() < 0.15:
            question = question.rstrip("?.!")
        if rng.random() < 0.15:
            question = question[0].lower() + question[1:]
        elif rng.random() < 0.05:
            question = question.lower()
        if rng.random() < 0.05:
            question = rng.choice(["Please tell me: ", "Hey, ", "And ", "Ok. ", "Now, "]) + question[0].lower() + question[1:]
        return question

    SKILLS = [("arithmetic", 20), ("word_problem", 4), ("numbers", 8), ("animal", 12), ("reverse", 2), ("legs", 2), ("colour", 5),
              ("yes_no", 2), ("opposite", 4), ("capital", 3), ("calendar", 5), ("fact", 10), ("social", 4), ("unknown", 8), ("say", 3),
              ("poem", 2), ("story", 9), ("memory", 12), ("greeting", 3)]

    def ask(self, skill):
        question, answer = getattr(self, skill)()
        return self.loosely(question), answer

    def remember(self, told):
        """A turn that tells something about the user, or asks for something told (or not told) before."""
        rng, key = self.rng, self.rng.choice(["name", "name", "pet", "colour", "age", "home", "food"])
        ask = {"name": ["What is my name?", "Who am I?", "Do you remember my name?", "What's my name?", "Do you know my name?"],
               "pet": ["What is the name of my pet?", "What is my pet called?", "Do you remember my pet?"],
               "colour": ["What is my favorite color?", "Which color do I like?"], "age": ["How old am I?", "What is my age?"],
               "home": ["Where do I live?", "Where am I from?"], "food": ["What do I like to eat?", "What is my favorite food?"]}[key]
        if rng.random() < 0.6 and told:  # asks rather for something that was told
            key = rng.choice(list(told))
            return self.remember_ask(key, told)
        if key not in told and rng.random() < 0.25:
            return rng.choice(ask), {"name": "You have not told me your name yet.", "pet": "You have not told me about a pet yet."}.get(
                key, "You have not told me that yet.")
        return self.remember_tell(key, told)

    def remember_ask(self, key, told):
        value, rng = told[key], self.rng
        return {
            "name": lambda: (rng.choice(["What is my name?", "Who am I?", "Do you remember my name?", "What's my name?",
                                         "Do you know my name?"]), f"Your name is {value}."),
            "pet": lambda: (rng.choice([f"What is the name of my {value[0]}?", f"What is my {value[0]} called?", "What is the name of my pet?",
                                        f"Do you remember my {value[0]}?"]), f"Your {value[0]} is called {value[1]}."),
            "colour": lambda: (rng.choice(["What is my favorite color?", "Which color do I like?"]), f"Your favorite color is {value}."),
            "age": lambda: (rng.choice(["How old am I?", "What is my age?"]), f"You are {value} years old."),
            "home": lambda: (rng.choice(["Where do I live?", "Where am I from?"]), f"You live in {value}."),
            "food": lambda: (rng.choice(["What do I like to eat?", "What is my favorite food?"]), f"You like {value}."),
        }[key]()

    def some_name(self):
        return self.rng.choice(NAMES) if self.rng.random() < 0.65 else pseudo_word(self.rng).capitalize()

    def remember_tell(self, key, told):
        rng = self.rng
        if key == "name":
            value = told[key] = self.some_name()
            hello = rng.choice(["My name is {n}.", "I am {n}.", "Hello, my name is {n}.", "Hi, I am {n}.", "Hello, I'm {n}!", "Call me {n}.",
                                "My name is {n}. Nice to meet you."]).format(n=value)
            return hello, rng.choice([f"Nice to meet you, {value}!", f"Hello, {value}! How can I help you?"])
        if key == "pet":
            kind, name = value = told[key] = (rng.choice("dog cat rabbit mouse horse duck bird fish".split()), self.some_name())
            told_it = rng.choice([f"I have a {kind} named {name}.", f"My {kind} is called {name}.", f"I have a {kind}. Its name is {name}."])
            return told_it, f"{name} is a nice name for a {kind}."
        if key == "colour":
            value = told[key] = rng.choice("red blue green yellow black white pink purple orange".split())
            return rng.choice([f"My favorite color is {value}.", f"I like the color {value}."]), f"{cap(value)} is a nice color."
        if key == "age":
            value = told[key] = rng.randint(3, 90)
            return rng.choice([f"I am {value} years old.", f"I'm {value} years old."]), f"{value} is a good age."
        if key == "home":
            value = told[key] = rng.choice(list(CAPITALS.values()) + list(CAPITALS) + [pseudo_word(rng).capitalize()])
            return rng.choice([f"I live in {value}.", f"I am from {value}.", f"I come from {value}."]), f"I hope {value} is nice at this time of year."
        value = told[key] = rng.choice("pizza bread apples cheese soup rice cake fish honey pasta cookies".split())
        return rng.choice([f"I like {value}.", f"I like to eat {value}.", f"My favorite food is {value}."]), f"{cap(value)} sounds tasty."

    def system(self):
        return [("system", self.rng.choice(SYSTEM))] if self.rng.random() < 0.2 else []

    def conversation(self, turns):
        rng, told, tale = self.rng, {}, None
        messages = self.system()
        names, weights = zip(*self.SKILLS)
        previous = None
        for turn in range(turns):
            skill = rng.choices(names, weights)[0]
            if turn == 0 and turns > 1 and rng.random() < 0.35:
                skill = "greeting"
            if tale and rng.random() < 0.5:
                question, answer = self.stories.about(tale)
                skill, tale = "about", None
            elif skill == "story":
                question, answer, tale = self.stories.request()
            elif skill == "memory":
                question, answer = self.remember(told)
            elif previous == "animal" and rng.random() < 0.4:
                animal, skill = rng.choice(list(ANIMALS)), "animal"
                question = rng.choice(["And {a}?", "What about {a}?", "And what about {a}?"]).format(a=a(animal))
                answer = self.animal_answer(self.last_relation, animal)
            else:
                question, answer = self.ask(skill)
            previous = skill
            messages += [("user", question), ("assistant", answer)]
        return messages

    # -- documents ------------------------------------------------------------------------------------------------------------

    def plain(self):
        kind = self.rng.random()
        if kind < 0.5:
            return self.stories.tell()[0]
        lines = []
        for _ in range(self.rng.randint(4, 14)):
            if kind < 0.85:
                while True:
                    x, op, y = self.operands()
                    if self.allowed("sum", x, op, y):
                        break
                lines.append(sum_answer(x, op, y))
            else:
                lines.append(self.ask(self.rng.choice(["animal", "colour", "opposite", "calendar", "capital", "numbers"]))[1])
        return ("\n" if kind < 0.85 else " ").join(lines)

    def drill(self):
        if self.rng.random() < 0.5:
            return self.sums(self.rng.randint(6, 16))
        told, turns = {}, []
        for key in self.rng.sample(["name", "name", "pet", "colour", "age", "home", "food"], self.rng.randint(1, 2)):
            turns.append(self.remember_tell(key, told))
        turns += [self.arithmetic() for _ in range(self.rng.randint(0, 3))]
        turns += [self.remember_ask(key, told) for key in told]
        return [m for q, r in turns for m in (("user", q), ("assistant", r))]

    def sums(self, count):
        draw = lambda: (lambda case: (case, "", sum_answer(*case)))(self.operands())
        return "\n".join(self.pick(draw, "sum")[1] for _ in range(count))

    def document(self, long=False):
        rng = self.rng
        if long:
            return self.conversation(rng.randint(15, 28))
        if self.focus and rng.random() < self.focus:
            return self.drill()
        kind = rng.random()
        if kind < 0.22:
            return self.plain()
        if kind < 0.32:
            pairs = [self.arithmetic() for _ in range(rng.randint(3, 8))]
            return self.system() + [m for q, r in pairs for m in (("user", q), ("assistant", r))]
        return self.conversation(rng.choice([1, 1, 1, 2, 3, 4, 5, 6, 8, 10]))


def exam(seed, count):
    """`count` held-out questions of every kind: (kind, messages, what the answer must be or contain)."""
    world, lessons = World(seed, exam=True), World(seed + 1)
    cases = []
    for kind in ["arithmetic", "word_problem", "animal", "colour", "opposite", "capital", "calendar"]:
        for _ in range(count):
            question, answer = getattr(world, kind)()
            cases.append((kind, [("user", question)], answer))
    for _ in range(count):  # told first, asked after one to four other turns
        told = {}
        key = lessons.rng.choice(["name", "name", "pet", "colour", "age", "home", "food"])
        turns = [lessons.remember_tell(key, told)] + [lessons.ask(lessons.rng.choice(["arithmetic", "animal", "fact", "colour"]))
                                                      for _ in range(lessons.rng.randint(1, 4))]
        question, answer = lessons.remember_ask(key, told)
        cases.append(("memory", [m for q, r in turns for m in (("user", q), ("assistant", r))] + [("user", question)], answer))
    for _ in range(count):
        question, answer = world.unknown()
        cases.append(("unknown", [("user", question)], answer))
    for _ in range(count):
        question, _, (_, hero) = lessons.stories.request(topic=lessons.rng.choice(list(ANIMALS)))
        cases.append(("story", [("user", question)], hero))
    return cases
