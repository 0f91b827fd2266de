"""The vocabulary of scenes as plain tables, which `vocabulary` parses."""

# One group a line: "group: name, name". "name=drawing+drawing" if emojibase has other names for the drawings.
CATEGORIES = """
mammal: monkey=monkey face+monkey, gorilla, orangutan, dog=dog face+dog, poodle, wolf, fox, raccoon, cat=cat face+cat,
  lion, tiger=tiger face+tiger, leopard, horse=horse face+horse, moose, unicorn, zebra, deer, cow=cow face+cow,
  pig=pig face+pig, boar, sheep=ewe+ram, goat, camel=camel+two-hump camel, llama, giraffe, elephant, rhinoceros,
  hippopotamus, mouse=mouse face+mouse, hamster, rabbit=rabbit face+rabbit, chipmunk, beaver, hedgehog, bat, bear,
  polar bear, koala, panda, sloth, otter, skunk, kangaroo, badger
bird: turkey, chicken, rooster, chick=baby chick+front-facing baby chick, penguin, dove, eagle, duck, swan, owl, dodo,
  flamingo, peacock, parrot, goose
reptile: frog, crocodile, turtle, lizard, snake, dragon=dragon face+dragon, dinosaur=sauropod+T-Rex
sea animal: whale=whale+spouting whale, dolphin, seal, fish=fish+tropical fish, shark, octopus, jellyfish, crab,
  lobster, shrimp, squid, oyster
insect: butterfly, ant, bee=honeybee, ladybug=lady beetle, cricket, cockroach, mosquito
small animal: snail, caterpillar=bug, spider, scorpion, worm
plant: bouquet, rose, hibiscus, sunflower, tulip, hyacinth, lotus, seedling, potted plant, pine tree=evergreen tree,
  leafy tree=deciduous tree, palm tree, cactus, clover=four leaf clover+shamrock, maple leaf
fruit: grapes, melon, watermelon, tangerine, lemon, banana, pineapple, mango, apple=red apple+green apple, pear, peach,
  cherries, strawberry, blueberries, kiwi=kiwi fruit, tomato, olive, coconut, avocado
vegetable: eggplant, potato, carrot, corn=ear of corn, chili=hot pepper, bell pepper, cucumber, broccoli, garlic, onion,
  peanuts, chestnut, mushroom=mushroom+brown mushroom
meal: bread, croissant, baguette=baguette bread, pretzel, bagel, pancakes, waffle, cheese=cheese wedge,
  chicken leg=poultry leg, steak=cut of meat, bacon, hamburger, french fries, pizza, hot dog, sandwich, taco, burrito,
  fried egg=cooking, popcorn, butter, salad=green salad, rice ball, sushi, dumpling, spaghetti
sweet: ice cream=soft ice cream+ice cream, doughnut, cookie, birthday cake, cupcake, pie, chocolate=chocolate bar,
  candy, lollipop, pudding=custard, honey=honey pot
drink: milk=glass of milk, coffee=hot beverage, wine=wine glass, cocktail=cocktail glass, beer=beer mug, bubble tea,
  juice box=beverage box, champagne=bottle with popping cork, soda=cup with straw
tableware: teapot, chopsticks, spoon, knife=kitchen knife, jar, amphora
land vehicle: locomotive, tram, bus=bus+oncoming bus, ambulance, fire truck=fire engine,
  police car=police car+oncoming police car, taxi=taxi+oncoming taxi,
  car=automobile+oncoming automobile+sport utility vehicle, pickup truck, delivery truck, tractor, racing car,
  motorcycle, motor scooter, wheelchair=manual wheelchair+motorized wheelchair, auto rickshaw, bicycle, kick scooter
boat: sailboat, canoe, speedboat=speedboat+motor boat, ship=ship+passenger ship+ferry
aircraft: airplane=airplane+small airplane, helicopter, rocket, flying saucer
building: house=house+house with garden, hospital, school, factory, castle, church, mosque, tent, hut
landmark: fountain, ferris wheel, statue of liberty=Statue of Liberty, stop sign,
  traffic light=vertical traffic light+horizontal traffic light, fuel pump
weather: sun=sun+sun with face, moon=crescent moon, star=star+glowing star, cloud, rainbow, snowflake,
  snowman=snowman+snowman without snow, fire, umbrella=umbrella with rain drops+umbrella, planet=ringed planet, tornado
ball: soccer ball, baseball, basketball, volleyball, football=american football, billiard ball=pool 8 ball
toy: yo-yo, kite, game controller=video game, die=game die, puzzle piece, teddy bear, joystick, balloon,
  dartboard=bullseye
sports gear: boxing glove, ice skate, diving mask, skis, sled, skateboard, roller skate, bow and arrow, boomerang
prize: trophy, medal=sports medal+1st place medal
decoration: gift=wrapped gift, jack-o-lantern, christmas tree=Christmas tree, framed picture, candle, ribbon
garment: necktie, t-shirt, jeans, scarf, gloves, coat, socks, dress, kimono, shorts, bikini
shoe: flip-flop=thong sandal, sneaker=running shoe, boot=woman's boot+hiking boot, high heel=high-heeled shoe
headwear: crown, sun hat=woman's hat, top hat, graduation cap, cap=billed cap, helmet=rescue worker's helmet
accessory: glasses, sunglasses, goggles, handbag, backpack, watch, ring, gem=gem stone, lipstick
musical instrument: saxophone, trumpet, accordion, guitar, piano=musical keyboard, violin, banjo, drum, flute, harp,
  maracas
device: phone=mobile phone, telephone, battery, laptop, computer=desktop computer, printer, keyboard, computer mouse,
  floppy disk, television, camera, video camera, light bulb, flashlight, radio, microphone=microphone+studio microphone,
  headphones=headphone, bell
timepiece: hourglass=hourglass done+hourglass not done, alarm clock, stopwatch
paper: book=closed book+green book+blue book+orange book, newspaper, scroll, envelope, calendar, clipboard
stationery: pencil, pen, paintbrush, crayon, pushpin, paperclip, ruler=straight ruler, scissors, palette=artist palette
money: coin, money bag, banknote=dollar banknote+euro banknote+pound banknote, credit card
container: box=package, mailbox=closed mailbox with raised flag, briefcase, folder=file folder, trash can=wastebasket,
  basket, bucket, shopping cart, suitcase=luggage
tool: hammer, axe, pickaxe=pick, saw=carpentry saw, wrench, screwdriver, gear, magnet, ladder, shovel, toolbox
weapon: dagger, shield, bomb
science: test tube, microscope, telescope, dna
medicine: syringe, pill, stethoscope, bandage=adhesive bandage
furniture: door, mirror, window, bed, couch=couch and lamp, chair, bathtub, toilet
household: lock=locked, key=key+old key, razor, broom, toilet paper=roll of paper, soap, toothbrush, sponge,
  fire extinguisher, plunger, anchor, lifebuoy=ring buoy, yarn, thread
"""
# What photographs show, in the words that people use for it; the categories above are more exact. One name a line:
# "name: drawing, drawing; category, category", the drawings by emojibase's names, and categories with cut-outs that are
# also called so.
EVERYDAY = """
person: person standing, man standing, woman standing, person walking, woman dancing, man dancing; fireman
bird: bird, black bird, parrot, eagle, dove, duck; adelaide rosella, blackbird, crow, crowned crane, cuckoo,
  guinea fowl, helmeted guinea fowl, great blue heron, lark, magpie, ostrich, pelican, quetzal, rainbow lorikeet,
  seagull, silver gull, toucan, vulture, bluebird, owl, parrot, duck, dove, goose, swan, eagle
flower: rose, tulip, hibiscus, blossom, cherry blossom, white flower, sunflower; rose, tulip, hibiscus, sunflower,
  daffodil, iris, marigold, anthurium, adenium, balsam, hibiscus flower, flowers, purple pigface flower,
  red plastic flower, red gazania, white star petunia, yellow flower
plant: potted plant, seedling, herb, cactus; potted plant, cactus, thyme plant, eggplant with fruit, bolted lettuce
tree: deciduous tree, evergreen tree, palm tree, leafless tree; leafy tree, pine tree, palm tree, christmas tree,
  birch at winter, holm oak, pili nut tree
leaf: maple leaf, fallen leaf, leaf fluttering in wind; maple leaf
cup: teacup without handle, hot beverage; mug
drinking glass: tumbler glass, glass of milk, clinking glasses; glass of water
bottle: bottle with popping cork, baby bottle, lotion bottle, sake; champagne
plate: fork and knife with plate
bowl: bowl with spoon, steaming bowl, cooked rice
vase: amphora, funeral urn; amphora
pitcher: amphora; very small pitcher
frying pan: cooking, shallow pan of food; fried egg
orange: tangerine; tangerine, seville orange
cake: birthday cake, shortcake, cupcake; birthday cake, cupcake
hat: top hat, woman's hat; top hat, sun hat, blue fedora, green fedora, feathered hat, sombrero
shoe: man's shoe, running shoe, high-heeled shoe, flat shoe; sneaker, high heel
glove: gloves; gloves
bag: handbag, purse, clutch bag, shopping bags, backpack; handbag, backpack
boat: sailboat, canoe, speedboat, motor boat, ship; sailboat, canoe, speedboat, ship
truck: delivery truck, articulated lorry, pickup truck, fire engine; delivery truck, pickup truck, fire truck, dumper,
  garbage truck
building: office building, hotel, bank, hospital, school, department store; hospital, school, house
mountain: mountain, snow-capped mountain, mount fuji
picture: framed picture; framed picture
lamp: red paper lantern, diya lamp
cabinet: file cabinet, card file box
notebook: notebook, notebook with decorative cover, spiral notepad, ledger
flag: triangular flag, white flag, black flag
sign: stop sign, placard, bus stop; stop sign
toy: teddy bear, nesting dolls, yo-yo; teddy bear, yo-yo
shell: spiral shell; abalone
clock: alarm clock, mantelpiece clock, watch; alarm clock, watch
ball: soccer ball, basketball, volleyball, baseball; soccer ball, basketball, volleyball, baseball
insect: ant, honeybee, beetle, lady beetle, fly; ant, bee, ladybug, fly, grasshopper, hornet, mantis, cricket
"""
STUFF = """
    sky, night sky, grass, water, sand, snow, road, brick wall, wooden floor, soil, stone wall, tiled floor, foliage,
    carpet, gravel, lava
"""
# Each line lists categories that are kinds of one another, or look alike when small.
LOOKALIKES = """
    car, taxi, police car, racing car, pickup truck, ambulance
    delivery truck, fire truck, pickup truck, ambulance
    bus, tram, locomotive, auto rickshaw
    motorcycle, motor scooter, kick scooter, bicycle
    ship, speedboat, sailboat, canoe
    dog, poodle, wolf, fox
    pig, boar
    mouse, hamster, chipmunk
    bear, teddy bear, panda, polar bear, koala
    monkey, gorilla, orangutan, sloth
    lion, tiger, leopard, cat
    horse, unicorn, zebra, deer, moose
    sheep, goat, llama
    badger, skunk, raccoon, otter, beaver
    chicken, rooster, chick, turkey
    duck, swan, goose, dove
    whale, dolphin, fish, shark, seal
    lobster, shrimp, crab, scorpion
    ant, bee, cricket, cockroach, mosquito, spider, ladybug
    worm, caterpillar, snake
    dragon, dinosaur, lizard, crocodile
    leafy tree, pine tree, christmas tree, palm tree, broccoli
    rose, tulip, hibiscus, sunflower, bouquet, lotus, hyacinth
    clover, seedling, potted plant, maple leaf
    tangerine, peach, mango, apple, tomato, lemon
    bread, baguette, croissant, burrito, sandwich
    cupcake, pie, birthday cake, pudding
    doughnut, bagel, pretzel
    candy, lollipop
    wine, cocktail, champagne
    soda, bubble tea, milk, coffee, juice box
    house, hut, school, hospital, church, castle, factory, mosque
    glasses, sunglasses, goggles, diving mask
    guitar, banjo, violin
    phone, telephone
    camera, video camera
    laptop, computer, television
    alarm clock, stopwatch, watch
    computer mouse, mouse
    chicken, chicken leg
    pencil, pen, crayon, paintbrush, ruler
    hammer, axe, pickaxe
    wrench, screwdriver
    top hat, cap, sun hat, helmet, graduation cap
    star, snowflake, sun
    sponge, soap, cheese, butter
    box, gift, book
    sneaker, boot, ice skate, roller skate, high heel, flip-flop
    light bulb, balloon
    knife, dagger
    skateboard, sled, skis
    key, lock
    spoon, chopsticks, broom
    bikini, shorts, jeans
    dress, kimono, coat, t-shirt
"""
# Familiar categories, distinct and recognizable when small: for training without a GPU.
CORE = """
    monkey, dog, cat, lion, horse, cow, pig, giraffe, elephant, rabbit, bear, panda, penguin, duck, owl, flamingo,
    parrot, frog, turtle, snake, fish, octopus, crab, butterfly, bee, ladybug, snail, rose, sunflower, pine tree,
    palm tree, cactus, grapes, watermelon, banana, pineapple, apple, pear, cherries, strawberry, eggplant, carrot,
    corn, mushroom, hamburger, french fries, pizza, hot dog, ice cream, doughnut, birthday cake, coffee, beer,
    teapot, locomotive, bus, car, tractor, bicycle, sailboat, airplane, helicopter, rocket, house, castle, tent,
    traffic light, rainbow, snowman, umbrella, soccer ball, basketball, kite, balloon, trophy, gift, t-shirt, socks,
    sneaker, crown, top hat, glasses, backpack, trumpet, guitar, drum, laptop, television, camera, light bulb, alarm
    clock, book, envelope, pencil, scissors, bucket, hammer, bed, chair, toilet, key, fire extinguisher
"""
# Used with "some" instead of "a", whether there is one or several.
UNCOUNTED = """
    moose, deer, sheep, fish, shrimp, squid, grapes, cherries, blueberries, corn, broccoli, garlic, peanuts, bread,
    pancakes, cheese, bacon, french fries, popcorn, butter, salad, sushi, spaghetti, chocolate, candy, pudding,
    honey, milk, coffee, wine, beer, bubble tea, champagne, soda, chopsticks, fire, skis, jeans, gloves, socks,
    shorts, glasses, sunglasses, goggles, maracas, headphones, scissors, dna, toilet paper, soap, yarn, thread
"""
# Names in emojibase that say less, more or something else than the drawing shows.
NOT_SYNONYMS = """
    ewe, sauropod, flipper, bug, cooking, red apple, red car, orange, birthday, hocho, boat, truck, scooter, shirt,
    locked, android, iphone, email, date, art, dart, direct hit, snowman with snow, hourglass done, closed book,
    racing motorcycle, bottle with popping cork, closed mailbox with raised flag, lower left ballpoint pen, lower
    left paintbrush, pen ballpoint, lower left crayon, three button mouse, mouse three button, tornado cloud, cloud
    tornado, cloud with tornado, sunny, helmet with cross, helmet with white cross, rescue worker helmet, rescue
    workers helmet, womans boot, womans hat, medal sports, octagonal sign, frame photo, european castle, archery,
    controller, soccer, dollar, desktop, school satchel, mortar board, woman's boot, woman's hat, fuelpump,
    icecream, hotdog, tophat, moneybag, dagger knife, couch and lamp, dollar banknote, milk glass, dromedary camel,
    vertical traffic light, video game
"""
