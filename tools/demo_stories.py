"""A small grammar of children's stories for the demo model. A story has a hero (any noun), a name, a place and one of several
plots; sentences are drawn with their variants, so no two stories are alike, yet each stays in order and in agreement."""


def a(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def cap(text):
    return text[:1].upper() + text[1:]


OTHER_HEROES = ("dragon robot knight princess king witch boy girl turtle deer elephant whale monkey tiger bat snail ant fairy giant wizard "
                "pirate sailor farmer baker teacher train boat star cloud tree snowman ghost teapot otter seal beaver "
                "butterfly parrot swan goose camel zebra panda koala raven badger kitten puppy").split()
GIRLS = set("Ana Lily Mia Emma Nora Lucy Clara Ida Ella Anna Maria Sara Eva Julia Laura Alice Freya Ingrid Sofia Grace Ruth Zoe".split())
ADJECTIVES = "little small young brave kind clever shy curious gentle quiet cheerful friendly hungry sleepy lonely funny".split()
PLACES = ["in a green forest", "by a blue lake", "on a high hill", "near an old mill", "in a small village", "at the edge of the woods",
          "in a quiet valley", "by the sea", "under a big oak tree", "in a sunny garden", "behind a red barn", "on a small island"]
HOBBIES = ["sing", "look at the stars", "play in the rain", "listen to the wind", "collect shiny stones", "swim in the river", "tell jokes",
           "dance in the moonlight", "read old books", "run through the grass", "watch the clouds", "eat sweet berries"]
TREASURES = ["golden key", "red ball", "shiny stone", "silver bell", "old map", "blue feather", "wooden box", "small lamp", "tiny boat",
             "round mirror", "lost letter", "warm scarf", "magic seed"]
FOUND_AT = ["under a stone", "in the grass", "by the river", "behind a tree", "on the path", "in a deep hole", "near the old well"]
FEELINGS = ["happy", "proud", "glad"]
TIMES = ["One day", "One morning", "One evening", "One sunny day", "One cold night", "One rainy morning"]
HELPS = ["carry the heavy wood", "find the way home", "pick the ripe apples", "build a little house", "cross the river", "mend the roof",
         "look for food", "light a warm fire"]
LESSONS = ["it is good to share", "friends help each other", "small ones can do great things", "it is good to be brave",
           "kind words cost nothing", "you should never give up", "home is the best place of all"]
ENDINGS = ["From that day on, they were best friends.", "And they lived happily ever after.", "They never forgot that day.",
           "Then everyone went home and slept well.", "And if you listen at night, you can still hear them laugh."]


class Storyteller:
    def __init__(self, rng, animals, names):
        self.rng, self.animals, self.names = rng, animals, names

    def some_hero(self):
        return self.rng.choice(self.animals if self.rng.random() < 0.75 else OTHER_HEROES)

    def tell(self, hero=None, friend=None, name=None):
        """Returns (the story, (the hero's name, the hero))."""
        rng = self.rng
        hero = hero or self.some_hero()
        friend = friend or rng.choice([x for x in self.animals if x != hero])
        name = name or rng.choice(self.names)
        girl = name in GIRLS
        v = dict(n=name, h=hero, ah=a(hero), f=friend, af=a(friend), he="she" if girl else "he", his="her" if girl else "his",
                 him="her" if girl else "him", adj=rng.choice(ADJECTIVES), place=rng.choice(PLACES), hobby=rng.choice(HOBBIES),
                 thing=rng.choice(TREASURES), spot=rng.choice(FOUND_AT), feel=rng.choice(FEELINGS), time=rng.choice(TIMES),
                 help=rng.choice(HELPS), lesson=rng.choice(LESSONS), end=rng.choice(ENDINGS))
        v["aadj"] = a(v["adj"])
        v["athing"] = a(v["thing"])
        v["He"] = cap(v["he"])
        opening = rng.choice([
            "Once upon a time, there was {aadj} {h} named {n}. {He} lived {place}.",
            "Once upon a time, there was {aadj} {h} named {n}. {n} lived {place} and loved to {hobby}.",
            "Once upon a time, {aadj} {h} lived {place}. {His} name was {n}.",
            "Long ago, {aadj} {h} named {n} lived {place}.",
            "There once was {aadj} {h} called {n}, who lived {place}."])
        plot = rng.choice([self.treasure, self.lost, self.help, self.storm, self.race, self.guest])()
        ending = rng.choice(["{end}", "{end}", "{n} had learned that {lesson}.", "So {n} learned that {lesson}. {end}", "{end} The end."])
        v["His"] = cap(v["his"])
        return " ".join([opening, plot, ending]).format(**v), (name, hero)

    def treasure(self):
        pick = self.rng.choice
        return " ".join([
            pick(["{time}, {n} found {athing} {spot}.", "{time}, {he} saw {athing} {spot}."]),
            pick(["\"Whose {thing} is this?\" {he} asked.", "{n} had never seen such a thing.", "\"How pretty!\" said {n}."]),
            pick(["Then {af} came along and began to cry.", "Soon {he} met {af} who looked very sad.", "Nearby sat {af} with tears in its eyes."]),
            pick(["\"I have lost my {thing},\" said the {f}.", "\"My {thing} is gone,\" said the {f}."]),
            pick(["{n} smiled and gave it back.", "\"Here it is,\" said {n}, and gave it back.", "So {n} gave the {thing} to the {f}."]),
            pick(["The {f} was so {feel} that it danced.", "\"Thank you, {n}!\" said the {f}.", "The {f} was very {feel}."])])

    def lost(self):
        pick = self.rng.choice
        return " ".join([
            pick(["{time}, {n} walked too far and lost {his} way.", "{time}, {he} went for a long walk and got lost."]),
            pick(["It grew dark, and {n} was afraid.", "{He} looked left and right, but nothing looked like home.", "The wind was cold and {n} was tired."]),
            pick(["Then {af} came out of the shadows.", "Then {he} heard a soft voice. It was {af}.", "At last {he} met {af}."]),
            pick(["\"Do not be afraid,\" said the {f}. \"I know the way.\"", "\"Come with me,\" said the {f}. \"I will take you home.\"",
                  "\"Are you lost?\" asked the {f}. \"Follow me!\""]),
            pick(["They walked side by side until they saw the lights of home.", "Together they walked through the night.",
                  "The {f} went first, and {n} followed."]),
            pick(["{n} gave the {f} a big hug.", "\"Thank you,\" said {n}. \"You are a true friend.\"", "When they came home, {n} was {feel} again."])])

    def help(self):
        pick = self.rng.choice
        return " ".join([
            pick(["{time}, {n} met {af} who wanted to {help}.", "{time}, {af} came and asked, \"Can you help me to {help}?\""]),
            pick(["It was hard work for one alone.", "The {f} was old and tired.", "Nobody else had time."]),
            pick(["\"I will help you,\" said {n}.", "\"Of course,\" said {n}.", "{n} did not wait and began at once."]),
            pick(["They worked all day long.", "They worked until the sun went down.", "Soon the work was done."]),
            pick(["In the evening, the {f} shared its food with {n}.", "The {f} gave {n} {athing}.", "\"You are so kind,\" said the {f}."])])

    def storm(self):
        pick = self.rng.choice
        return " ".join([
            pick(["{time}, a great storm came.", "{time}, the sky turned black and a storm began."]),
            pick(["The wind blew and the rain fell.", "The rain fell and the river grew.", "Thunder rolled over the land."]),
            pick(["{n} heard a cry for help. It was {af}.", "Outside, {af} was wet and cold.", "{n} saw {af} in the rain."]),
            pick(["\"Come in!\" said {n}. \"It is warm here.\"", "{n} ran out and brought the {f} inside.", "{He} took the {f} to a dry place."]),
            pick(["They sat by the fire and told stories.", "They drank warm milk and waited.", "All night they sang songs together."]),
            pick(["In the morning, the sun was shining again.", "When the storm was over, they saw a rainbow."])])

    def race(self):
        pick = self.rng.choice
        return " ".join([
            pick(["{time}, {af} said, \"I am faster than you!\"", "{time}, {n} and {af} had a race."]),
            pick(["They ran to the old tree and back.", "Everyone came to watch.", "The {f} laughed and ran ahead."]),
            pick(["But halfway the {f} fell and hurt its leg.", "But on the way the {f} fell into a hole."]),
            pick(["{n} could have won, but {he} stopped to help.", "{n} stopped at once and helped the {f}."]),
            pick(["They came to the end side by side.", "Together they walked to the end."]),
            pick(["Everyone clapped, and both were {feel}.", "\"You are the real winner,\" said the {f}."])])

    def guest(self):
        pick = self.rng.choice
        return " ".join([
            pick(["But {n} had no friends and was often sad.", "{n} wished for a friend."]),
            pick(["{time}, somebody knocked at the door. It was {af}.", "{time}, {af} moved into the house next door.",
                  "{time}, {af} came by and said hello."]),
            pick(["\"Would you like to {hobby} with me?\" asked the {f}.", "\"What do you like to do?\" asked the {f}. \"I like to {hobby},\" said {n}."]),
            pick(["\"I would love to!\" said {n}.", "{n} was so {feel} that {he} jumped."]),
            pick(["So they went out to {hobby} together.", "All day long they laughed and played."])])

    def request(self, topic=None):
        """Returns (the request, the story, (name, hero))."""
        rng, kind = self.rng, self.rng.random()
        hero = topic or self.some_hero()
        please = rng.choice(["Tell me a story", "Tell me a short story", "Write a story", "Can you tell me a story", "Please tell me a story",
                             "Write me a short story", "I want a story", "Tell a story"])
        mark = "?" if please.startswith("Can") else "."
        if topic is None and kind < 0.25:
            text, tale = self.tell()
            return rng.choice([please + mark, "A story, please.", "Tell me another story.", "Another story, please!"]), text, tale
        if kind < 0.4:
            friend = rng.choice([x for x in self.animals if x != hero])
            text, tale = self.tell(hero, friend)
            return f"{please} about {a(hero)} and {a(friend)}{mark}", text, tale
        if kind < 0.5:
            name = rng.choice(self.names)
            text, tale = self.tell(hero, None, name)
            return f"{please} about {a(hero)} named {name}{mark}", text, tale
        text, tale = self.tell(hero)
        if kind < 0.58:
            return rng.choice([f"A story about {a(hero)}, please.", f"Story about {a(hero)}", f"Now one about {a(hero)}."]), text, tale
        request = f"{please} about {a(hero)}{mark}"
        return (request.lower().rstrip(".") if rng.random() < 0.1 else request), text, tale

    def about(self, tale):
        """A question about the story just told, and its answer."""
        name, hero = tale
        question = self.rng.choice([f"What was the name of the {hero}?", f"What was the {hero} called?", "Who was the story about?",
                                    "Thank you! Who was in the story?", f"Who was {name}?"])
        if "called" in question or "name of" in question:
            return question, f"The {hero} was called {name}."
        if question.startswith("Who was " + name):
            return question, f"{name} was {a(hero)}."
        return question, f"It was about {a(hero)} named {name}."
